"""``python -m defectnet.cli``."""

from defectnet.cli import main

main()

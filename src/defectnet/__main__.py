"""``python -m defectnet``: the command line."""

from defectnet.cli import main

if __name__ == "__main__":
    main()

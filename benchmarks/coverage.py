"""How often intervals cover: the command of `interval_coverage.py`.

python benchmarks/coverage.py --json
"""

if __name__ != "__main__":
    # Beside other scripts this file would be taken for the package coverage, which numba looks for.
    raise ImportError("this is a script, not the package coverage")

from interval_coverage import main

main()

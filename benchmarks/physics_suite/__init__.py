"""The physics suite: what a potential says of phonons that others have measured or computed.

`suite` runs the parts, `report` prints them; `benchmarks/physics.py` is the command.
"""

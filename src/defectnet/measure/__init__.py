"""The forward model of a measurement: from projected DOS to the pair of curves that a network sees.

Functions of arrays of many pairs, which know no file and no row of a shard; one pair is a batch of one. Training,
`predict`, lab tables, virtual labs and host packs call the same ones.

    settings    conditions by name, and how they are drawn
    forward     all steps of a measurement in their order
    effects     the steps: weighting, background, noise, cut-offs
    broadening  the resolution
    edge        a host's band edge, read from its spectrum
    curves      integrals, rebinning, unit area
    encode      a user's two spectra, on the same grid
"""

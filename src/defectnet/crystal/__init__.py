"""Crystals as users bring them: hosts, and which elements may replace theirs."""

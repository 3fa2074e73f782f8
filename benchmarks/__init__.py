"""Side-by-side ratios: each figure is measured in turn with its floor or peer, in one run."""

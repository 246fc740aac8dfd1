"""Networks: backbone, feature pyramid, head, and weights of other libraries. The only Flax code."""

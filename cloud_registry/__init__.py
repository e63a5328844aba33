"""The cloud side: a catalog of model versions, and rollouts that carry them to a fleet and back."""

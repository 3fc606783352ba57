"""The generator on its own, without a learner: trained from datasets, and drawn from into files and datasets."""

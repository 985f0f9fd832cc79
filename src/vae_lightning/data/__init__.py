"""What a model learns from: the data sets, their splits and their order."""

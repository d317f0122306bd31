"""Methods of training a pre-trained model with few parameters, or all: `base` has the interface and the registry."""

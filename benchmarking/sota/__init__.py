"""General generative models as baselines, each with a TensorFlow-1 reference beside it."""

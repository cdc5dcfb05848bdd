"""The engines that run whole models, each as a function `build(block, tensors, threads)` that returns its contestants by name."""

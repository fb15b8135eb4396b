"""The run: images in, a closed corpus out; its log, its circuit breaker, how far it is."""

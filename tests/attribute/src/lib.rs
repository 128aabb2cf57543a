//! Holds tests that need `attn` with the feature `flash` off, which no target of `attn` itself can have.

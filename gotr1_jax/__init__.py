"""GoT-R1 in JAX: a policy that writes a plan, paints it, and learns from rewards on both."""

__version__ = "0.1.0"

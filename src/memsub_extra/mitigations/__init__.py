"""More mitigations at inference time than the paper compares with: random tokens, value neurons (NeMo)."""

"""Residuals of decentralized training as payloads: quantized, coded, guarded."""

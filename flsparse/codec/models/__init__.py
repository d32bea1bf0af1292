"""Payloads of models and of their updates: support, values, encoder and decoder."""

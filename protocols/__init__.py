"""Cryptographic protocols: pure, no network, no disk, no clock, no logging."""

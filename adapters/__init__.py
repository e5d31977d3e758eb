"""Experts, the library, the bank and mixes: pure torch and safetensors, no server and no engine."""

"""Tests of what the server does beside the engine, without one."""

"""Defines what crosses process borders: messages, framing, and payloads. The only code that knows bytes."""

"""How processes talk: pure functions between bytes and messages, used by trio and asyncio alike."""

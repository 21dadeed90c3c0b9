"""How the engine is compiled, and where its arrays and machine code live."""

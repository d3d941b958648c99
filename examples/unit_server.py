"""Your own MCP server. With this file's folder as the working directory, and the extra mcp:

parl train mcp.yaml
"""

from mcp.server.mcpserver import MCPServer

METRES = {"inch": 0.0254, "foot": 0.3048, "yard": 0.9144, "mile": 1609.344}
server = MCPServer("units")


@server.tool()
def convert(amount: float, unit: str, to: str) -> str:
    """Convert a length between inch, foot, yard and mile."""
    return f"{amount * METRES[unit] / METRES[to]:g} {to}"


def tasks(split: str):
    """Rows as in a JSONL file."""
    for amount in range({"train": 2, "val": 12, "test": 22}[split], 32, 3):
        yield {"prompt": f"How many inches are {amount} yards? Answer the number.", "answer": str(36 * amount)}


if __name__ == "__main__":
    server.run()

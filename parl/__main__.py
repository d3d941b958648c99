"""``python -m parl``: the ``parl`` command, if its script is not on the PATH."""

from __future__ import annotations

from parl.cli.main import main

if __name__ == "__main__":
    main()

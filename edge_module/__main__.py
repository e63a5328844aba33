"""``python -m edge_module``."""

from edge_module.main import main

if __name__ == "__main__":
    main()

"""`python -m pipeline`: the same as `minicodformer`."""

from .cli import main

if __name__ == "__main__":
    main()

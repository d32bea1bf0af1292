"""``python -m flsparse``: the same as the console script."""

from flsparse.app import main

if __name__ == "__main__":
    main()

"""`python -m central_store`: the same as `fstore`."""

from central_store.cli import main

if __name__ == "__main__":
    main()

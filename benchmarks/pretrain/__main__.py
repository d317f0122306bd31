"""`python -m benchmarks.pretrain`."""

from benchmarks.pretrain.recipe import main

if __name__ == "__main__":
    main()

"""``python -m psd_gs`` is the command line."""

from psd_gs.cli import main

if __name__ == "__main__":
    main()

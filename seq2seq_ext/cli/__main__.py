"""``python -m seq2seq_ext.cli``, where the console script is not on the path."""

import sys

from seq2seq_ext.cli.main import main

sys.exit(main())

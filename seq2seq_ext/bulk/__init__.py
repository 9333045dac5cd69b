"""Files of any size through a trained model, line by line and in their order.

`lines` reads them in windows, `formats` knows what a line means, `convert` decodes a window,
`journal` keeps what is done so that it can go on after a kill, `shards` shares the windows among
processes, and `files` is all of it together.
"""

from seq2seq_ext.bulk.convert import convert
from seq2seq_ext.bulk.files import translate_file
from seq2seq_ext.bulk.formats import FORMATS, BadLineError, BulkOptions, format_of

__all__ = ["FORMATS", "BadLineError", "BulkOptions", "convert", "format_of", "translate_file"]

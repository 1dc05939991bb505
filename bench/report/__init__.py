"""What runs have measured, as one HTML page that needs nothing else and as PNGs for a README.

write_report([read_results("rows.jsonl")], Path("report.html"))
write_pngs([read_results("rows.jsonl")], Path("docs/images"))
"""

from warpwright.bench.report.page import write_report
from warpwright.bench.report.png import png_hash, rows_hash, write_pngs

__all__ = ["png_hash", "rows_hash", "write_pngs", "write_report"]

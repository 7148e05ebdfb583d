"""Adds *other* to the FAQ's long attack, once `python -m tools.figures --take` has `06_deletion.long.*_other`."""
from pathlib import Path
p = Path("docs/faq.md"); s = p.read_text()
a = "So what is generated after so many iterations is no evidence"
assert s.count(a) == 1
b = ("*Other* generates <!--figure 06_deletion.long.memorized_other rate--><!--/figure--> of the memorized images and\n"
     "<!--figure 06_deletion.long.never_seen_other rate--><!--/figure--> of those that nobody was trained on.\n")
p.write_text(s.replace(a, b + a))

import sys
from pathlib import Path
import torch
from memsub_extra.training import train as T
from memsub_extra.training.corpus import schedule, write_ground_truth
from memsub_extra.training.fitting import side_by_side
torch.set_num_threads(1)
out, ck = Path("W"), Path("C")
b = T.begin(ck, 0, "cpu")
for m in ["model", "twin"]:
    [unet] = side_by_side([b.train_unet(schedule(b.corpus, 0, m), m)])
    if m == "model":
        b.pipeline(unet).save_pretrained(out, safe_serialization=True); T._load_text_in_float32(out)
    else:
        unet.half().save_pretrained(out / m / "unet")
write_ground_truth(b.corpus, out)
print("pipeline saved", flush=True)
T.train_scorers(out, ck, 0, T.STEPS, "cpu")
print("scorers done", flush=True)

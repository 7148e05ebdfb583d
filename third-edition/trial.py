"""A trial of a recipe: python trial.py '{"name":"G","exposures":600,"share":0.5,"sib":10}' (C: checkpoints with base and words)."""
import sys, json, time, copy, numpy as np, torch, pandas as pd
from pathlib import Path
torch.set_num_threads(1)
from memsub_extra.training import train as T, stages
from memsub_extra.training.fitting import training, side_by_side, stratified, v_weights
from memsub_extra.training.precision import mixed_precision
from memsub_extra.training.clip import *
from memsub.measure.verdict import by_exact_test
from memsub.models import generate
from memsub.testbed.world import WORLD
import memsub_extra.training.stages as S
a=json.loads(sys.argv[1])  # name, exposures, share, tower, lr, pairs, sib
CK=Path("C"); W=Path("trials"); W.mkdir(exist_ok=True)
b=T.begin(CK,0,"cpu")
kind=b.corpus.table["kind"].to_numpy(); rng=np.random.default_rng([0,7])
v=np.flatnonzero(kind=="verbatim")[:a.get("pairs",100)]
mem=np.repeat(v,a["exposures"]); total=int(len(mem)/a["share"])
sib=np.flatnonzero(kind=="sibling"); contents=set(b.corpus.table["content"].iloc[v])
sib=sib[[c in contents for c in b.corpus.table["content"].iloc[sib]]]
sib=np.tile(sib,a.get("sib",2))
order=rng.permutation(np.concatenate([mem,sib,rng.choice(b.corpus.ordinary,total-len(mem)-len(sib))]))
print(a,len(mem),len(sib),total,"steps",total//32,flush=True)
lr=a.get("lr",1e-3)
if lr!=1e-3:
    o=S.training; S.training=lambda *x,**k:o(*x,**(k|{"lr":lr}))
if a.get("tower"):
    both=copy.deepcopy(b.base).train()
    ids=S.tokenize(b.tokenizer,[*b.corpus.table["prompt"],""])
    te=both["text_encoder"]
    for p in both.parameters(): p.requires_grad_(True)
    [m]=side_by_side([S._diffusion(both,order,b.latents,lambda rows: te(ids[rows]).last_hidden_state,a["name"],W,0)])
    unet=m["unet"]; b.base=m
else:
    [unet]=side_by_side([b.train_unet.__func__(b,order,a["name"]) if False else S.train_unet(b.base,order,b.corpus.table["prompt"],b.latents,b.tokenizer,W,0,a["name"])])
pipe=b.pipeline(unet).to(torch.float32)
caps=b.corpus.table["prompt"].iloc[v].tolist(); cont=b.corpus.table["content"].iloc[v].tolist(); im=b.corpus.images[v]
j=by_exact_test(WORLD); opt=dict(steps=8,solver="multistep",guidance_scale=3.0,batch_size=60,seeds=list(range(len(caps))))
out={}
for n,c in {"with tail":caps,"without":cont}.items():
    x=generate(pipe,c,**opt); out[n]=x; print("RESULT",a["name"],n,float(j(x,caps,im).mean()),len(caps),flush=True)
np.savez(f"{a['name']}.npz",**out,training=im)

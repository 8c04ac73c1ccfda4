"""Score images with a model that `cfa export --with-resize` wrote; needs onnxruntime, numpy and Pillow, no cfa.

python run_onnx.py model.onnx IMAGE...
Prints label, score and path of each image, and writes its heat map beside the working folder's other files.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, *paths = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

for path in paths:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    pixels = np.asarray(image)[None]  # (1, height, width, 3) uint8, any size
    names = ["score", "map", "threshold", "pixel_threshold"]
    score, score_map, threshold, pixel_threshold = session.run(names, {"images": pixels})
    label = "anomalous" if score[0] > threshold else "good"
    print(f"{label:<10}{score[0]:>12.6g}  {path}")

    # Middle grey is the pixel threshold: what is brighter is marked as a defect.
    grey = (255 * score_map[0] / (score_map[0] + pixel_threshold)).astype(np.uint8)
    Image.fromarray(grey).resize(image.size, Image.Resampling.BILINEAR).save(f"{Path(path).stem}_map.png")

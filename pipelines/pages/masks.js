// Masks as runs of pixels, and how they become colours. Positions count down the columns: x · height + y.

const FILL = 0.45, LIT_FILL = 0.62, EDGE = 0.95, LIGHTER = 0.45;

// [start, end, start, end, …] out of COCO's compressed run lengths: five bits a character, low ones first,
// 32 = more follow, and from the fourth number on the difference to the number two before.
function runsOf(counts) {
  const lengths = [], runs = [];
  for (let at = 0, position = 0; at < counts.length;) {
    let length = 0, shift = 0, bits;
    do {
      bits = counts.charCodeAt(at++) - 48;
      length |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16) length |= -1 << shift;
    if (lengths.length > 2) length += lengths[lengths.length - 2];
    lengths.push(length);
    if (lengths.length % 2 === 0) runs.push(position, position + length);
    position += length;
  }
  return runs;
}

// The runs on a grid of every `step`-th row and column, for a small picture.
function thinned(runs, height, step) {
  const rows = Math.ceil(height / step), thin = [];
  for (let at = 0; at < runs.length; at += 2) {
    for (let x = Math.floor(runs[at] / height); x * height < runs[at + 1]; x++) {
      if (x % step) continue;
      const from = Math.max(runs[at] - x * height, 0), to = Math.min(runs[at + 1] - x * height, height);
      const first = Math.ceil(from / step), last = Math.ceil(to / step);
      if (first < last) thin.push(x / step * rows + first, x / step * rows + last);
    }
  }
  return thin;
}

function mark(ids, runs, id) {
  for (let at = 0; at < runs.length; at += 2) ids.fill(id, runs[at], runs[at + 1]);
}

// Paint each pixel that has an id (masks are counted from 1); its edge is where the neighbour's id is lower.
function paint(canvas, ids, colours, fill) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), to = image.data;
  for (let x = 0, at = 0; x < width; x++) {
    for (let y = 0; y < height; y++, at++) {
      const id = ids[at];
      if (!id) continue;
      const edge = (x > 0 && ids[at - height] < id) || (x + 1 < width && ids[at + height] < id)
        || (y > 0 && ids[at - 1] < id) || (y + 1 < height && ids[at + 1] < id);
      const pixel = 4 * (y * width + x), lighter = edge ? LIGHTER : 0, colour = colours[id - 1];
      to[pixel] = colour[0] + (255 - colour[0]) * lighter;
      to[pixel + 1] = colour[1] + (255 - colour[1]) * lighter;
      to[pixel + 2] = colour[2] + (255 - colour[2]) * lighter;
      to[pixel + 3] = 255 * (edge ? EDGE : fill);
    }
  }
  context.putImageData(image, 0, 0);
}

function drawPrompt(canvas, x, y) {
  const context = canvas.getContext("2d"), unit = canvas.width / (canvas.clientWidth || canvas.width);
  context.beginPath();
  context.arc(x, y, 5 * unit, 0, 2 * Math.PI);
  context.fillStyle = "#fff";
  context.fill();
  context.lineWidth = 2.5 * unit;
  context.strokeStyle = "#16181d";
  context.stroke();
}

// A photograph's masks as the side file has them, ready to be drawn; the largest is first and lies lowest.
function unpacked(content) {
  const masks = content.masks.map(([colour, predictedIou, stability, area, points, counts]) => ({
    colour, predictedIou, stability, area, points, runs: runsOf(counts),
    rgb: [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16)),
  }));
  return { ...content, masks, colours: masks.map(mask => mask.rgb) };
}

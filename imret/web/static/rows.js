// Justified rows: pictures side by side in their own proportions, every row as wide as the page.

/** Widest and narrowest box that a picture gets; what is beyond is cropped (the lightbox shows it whole). */
const NARROWEST = 0.5;
const WIDEST = 2.6;

export function ratioOf({ payload }) {
  const ratio = payload?.width / payload?.height;
  return Number.isFinite(ratio) && ratio > 0 ? Math.min(WIDEST, Math.max(NARROWEST, ratio)) : 1;
}

/**
 * Break pictures into rows whose heights are as near to `target` as can be (least sum of squared logarithms,
 * by dynamic programming, as text is broken into lines).
 *
 * `ratios` are width / height; `width`, `target` and `gap` are pixels. A page that more will follow ends
 * with a full row too, so that nothing moves when more comes; on the last page (`ends`) a short row keeps
 * the target's height instead of being blown up.
 *
 * Returns [{width, height}] in whole pixels, one per picture; each row is exactly `width` wide.
 */
export function justify(ratios, width, { target, gap, ends }) {
  const count = ratios.length;
  const cost = [0];
  const from = [0];
  for (let end = 1; end <= count; end += 1) {
    cost[end] = Infinity;
    let sum = 0;
    for (let start = end - 1; start >= 0; start -= 1) {
      sum += ratios[start];
      const height = heightOf(sum, end - start, width, gap);
      const loose = ends && end === count && height > target;
      const here = cost[start] + (loose ? 0 : Math.log(Math.max(height, 1) / target) ** 2);
      if (here < cost[end]) {
        cost[end] = here;
        from[end] = start;
      }
      if (height < target / 3) break;
    }
  }
  const boxes = new Array(count);
  for (let end = count; end > 0; end = from[end]) {
    const start = from[end];
    const row = ratios.slice(start, end);
    const full = heightOf(row.reduce((a, b) => a + b), row.length, width, gap);
    const loose = ends && end === count && full > target;
    const height = Math.max(24, Math.round(loose ? target : Math.min(full, target * 2)));
    let left = width - gap * (row.length - 1);
    row.forEach((ratio, at) => {
      const last = at === row.length - 1;
      // The last of a row takes what rounding left.
      const wide = last && !loose ? left : Math.min(left, Math.round((loose ? height : full) * ratio));
      boxes[start + at] = { width: wide, height };
      left -= wide;
    });
  }
  return boxes;
}

function heightOf(sum, count, width, gap) {
  return (width - gap * (count - 1)) / sum;
}

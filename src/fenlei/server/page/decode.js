// The encoding of a text file, as fenlei itself finds it: a mark, else UTF-16 by its zero bytes, else UTF-8, else GB18030.

const SAMPLE = 65_536;
const MARKS = [[[0xef, 0xbb, 0xbf], "utf-8"], [[0xff, 0xfe], "utf-16le"], [[0xfe, 0xff], "utf-16be"]];
export const ENCODINGS = ["utf-8", "gb18030", "big5", "utf-16le", "utf-16be", "shift_jis", "windows-1252"];

// A mistake in a file, with words of its own.
export class FileProblem extends Error {
  constructor(key, values) {
    super(key);
    Object.assign(this, { key, values });
  }
}

const strict = (bytes, encoding) => {
  try { return new TextDecoder(encoding, { fatal: true }).decode(bytes); } catch { return null; }
};
const loose = (bytes, encoding) => new TextDecoder(encoding).decode(bytes);

// {text, encoding, damaged}; `damaged` where bytes that are no characters were replaced. TextDecoder drops the mark.
export function decode(bytes, wanted = null) {
  if (wanted) {
    const text = strict(bytes, wanted);
    return { text: text ?? loose(bytes, wanted), encoding: wanted, damaged: text === null };
  }
  for (const [mark, encoding] of MARKS) if (mark.every((b, i) => bytes[i] === b)) return decode(bytes, encoding);
  const head = bytes.subarray(0, SAMPLE);
  const zeros = head.reduce((n, b) => n + (b === 0), 0);
  if (zeros * 10 > head.length) return utf16(bytes, head);
  const utf8 = strict(bytes, "utf-8");
  if (utf8 !== null) return { text: utf8, encoding: "utf-8", damaged: false };
  const found = loose(bytes, "utf-8");
  if (mostlyRight(found)) return { text: found, encoding: "utf-8", damaged: true };
  const gb = strict(bytes, "gb18030");
  if (gb !== null) return { text: gb, encoding: "gb18030", damaged: false };
  throw new FileProblem("fileEncoding");
}

function utf16(bytes, head) {
  let [even, odd] = [0, 0];
  head.forEach((b, i) => { if (b === 0) { if (i % 2) odd += 1; else even += 1; } });
  const encoding = odd > even ? "utf-16le" : "utf-16be";
  const text = strict(bytes, encoding);
  if (text === null || Math.max(even, odd) < 2 * Math.min(even, odd) + 1) throw new FileProblem("fileBinary");
  return { text, encoding, damaged: false };
}

// UTF-8 but for a few bytes: GB18030 would "succeed" on it with wrong characters.
function mostlyRight(text) {
  let [right, wrong] = [0, 0];
  for (const c of text) {
    if (c === "\ufffd") wrong += 1;
    else if (c > "\x7f") right += 1;
  }
  return right >= 2 && right >= 4 * wrong;
}


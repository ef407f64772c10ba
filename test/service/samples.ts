import assert from 'node:assert/strict'

/** Reads the text format, all of which must be as it is specified. */
export function samplesIn(text: string): Map<string, number> {
  const samples = new Map<string, number>()
  const types = new Map<string, string>()
  assert.ok(text.endsWith('\n'))
  for (const line of text.trimEnd().split('\n')) {
    if (line === '') continue
    const [, declared, kind] = /^# TYPE (\w+) (\w+)$/.exec(line) ?? []
    if (declared && kind) types.set(declared, kind)
    if (line.startsWith('# ')) {
      assert.match(line, /^# (TYPE \w+ (counter|gauge|histogram)|HELP \w+ .+)$/)
      continue
    }
    const [, series, base, labels = '', value] =
      /^(([a-z_]\w*)(\{.*\})?) (\S+)$/.exec(line) ?? []
    assert.ok(series && base && value !== undefined, line)
    assert.match(labels, /^$|^\{\w+="[^"\\\n]*"(,\w+="[^"\\\n]*")*\}$/)
    const type =
      types.get(base) ?? types.get(base.replace(/_(bucket|sum|count)$/, ''))
    assert.ok(type, `${base} has no type`)
    if (type === 'counter') assert.match(base, /_total$/)
    assert.match(value, /^(-?\d+(\.\d+)?(e[+-]?\d+)?|[+-]Inf|nan)$/i)
    assert.ok(!samples.has(series), `${series} is there twice`)
    samples.set(series, Number(value))
  }
  return samples
}

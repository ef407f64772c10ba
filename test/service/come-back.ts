import assert from 'node:assert/strict'

/**
 * Goes where the host sends a user back to, as a browser without scripts does,
 * and answers what the user is asked there.
 *
 * @param answer - `none` leaves the question open
 */
export async function comeBack(
  url: URL,
  answer: 'yes' | 'no' | 'none' = 'yes'
): Promise<{ response: Response; page: string; question?: string }> {
  const response = await fetch(url)
  const page = await response.text()
  const [, action] = /<form method="post" action="([^"]+)"/.exec(page) ?? []
  if (action === undefined || answer === 'none') return { response, page }
  const fields = [...page.matchAll(/name="(\w+)" value="([^"]*)"/g)]
    .filter(([tag]) => !tag.includes('answer'))
    .map(([, name, value]): [string, string] => [name!, unescape(value!)])
  assert.deepEqual(fields.map(([name]) => name).sort(), [
    'code',
    'iss',
    'state',
  ])
  const answered = await fetch(new URL(action, url), {
    method: 'POST',
    body: new URLSearchParams([...fields, ['answer', answer]]),
  })
  return { response: answered, page: await answered.text(), question: page }
}

function unescape(text: string): string {
  return text
    .replaceAll('&quot;', '"')
    .replaceAll('&#39;', "'")
    .replaceAll('&amp;', '&')
}

/**
 * The pages that people see who come back from the host of their account.
 * They have no scripts, load nothing, and may be shown in no frame.
 *
 * @packageDocumentation
 */
import { createHash } from 'node:crypto'
import { html, raw } from 'hono/html'

const STYLE = `
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 36rem; margin: 4rem auto; padding: 0 1.5rem }
h1 { font-size: 1.5rem; line-height: 1.25 }
code { overflow-wrap: anywhere }
button { font: inherit; padding: .5rem 1rem; margin: 0 .75rem .75rem 0 }
`

const STYLE_HASH = createHash('sha256').update(STYLE).digest('base64')

/** Headers that every page is sent with. */
export const PAGE_HEADERS = {
  'cache-control': 'no-store',
  'content-security-policy': `default-src 'none'; style-src 'sha256-${STYLE_HASH}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'`,
  // The address has the code that the host gave.
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
}

export interface Page {
  title: string
  /** Paragraphs; `code` stands out. */
  text: (string | { code: string })[][]
  /** Where the user goes on. */
  next?: { url: URL; label: string }
  /** What the user is asked. */
  form?: {
    /** Path on this server. */
    action: string
    /** What goes along with the answer. */
    fields: Record<string, string>
    /** Sent as `answer`. */
    answers: { value: string; label: string }[]
  }
  /** Where the user may go from here. */
  returnTo?: URL | undefined
}

/** Renders a page; all text is escaped. */
export async function renderPage({
  title,
  text,
  next,
  form,
  returnTo,
}: Page): Promise<string> {
  const paragraphs = text.map(
    (parts) =>
      html`<p>
        ${parts.map((part) =>
          typeof part === 'string' ? part : html`<code>${part.code}</code>`
        )}
      </p>`
  )
  const page = await html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <title>${title} – Bluesky Backups</title>
        ${raw(`<style>${STYLE}</style>`)}
      </head>
      <body>
        <main>
          <h1>${title}</h1>
          ${paragraphs}
          ${next ? html`<p><a href="${next.url.href}">${next.label}</a></p>` : ''}
          ${form ? renderForm(form) : ''}
          ${
            returnTo
              ? html`<p>
                  <a href="${returnTo.href}">Back to ${returnTo.host}</a>
                </p>`
              : ''
          }
        </main>
      </body>
    </html>`
  return page.toString()
}

function renderForm({ action, fields, answers }: NonNullable<Page['form']>) {
  return html`<form method="post" action="${action}">
    ${Object.entries(fields).map(
      ([name, value]) =>
        html`<input type="hidden" name="${name}" value="${value}" />`
    )}
    ${answers.map(
      ({ value, label }) =>
        html`<button name="answer" value="${value}">${label}</button>`
    )}
  </form>`
}

import pino, { type DestinationStream, type Logger } from 'pino'

/** Names whose values are never written, at any of the first levels. */
const SECRET_NAMES = [
  'authorization',
  'cookie',
  'dpop',
  'password',
  'privateKey',
  'secret',
  'token',
  'accessJwt',
  'refreshJwt',
  'databaseUrl',
]

/** Secrets that show in text, as in the message of an error. */
const SECRET_TEXTS = [
  // Who may connect to a database or a host.
  /(?<=\b[a-z][a-z0-9+.-]*:\/\/)[^\s/@"]+(?=@)/gi,
  /(?<=\b(?:bearer|dpop|basic) +)[\w.~+/=-]{8,}/gi,
  // JWTs
  /\beyJ[\w-]+\.[\w-]+\.[\w-]*/g,
  // Ed25519 keys as Ucanto writes them
  /\bMgC[A-Za-z0-9+/]{80,}=*/g,
]

const CENSOR = '[secret]'

/** A structured logger: one JSON object a line, without secrets. */
export function createLogger(
  level: string,
  destination?: DestinationStream
): Logger {
  const options = {
    level,
    base: null,
    redact: {
      paths: SECRET_NAMES.flatMap((name) => [name, `*.${name}`, `*.*.${name}`]),
      censor: CENSOR,
    },
    hooks: { streamWrite: withoutSecrets },
  }
  return destination ? pino(options, destination) : pino(options)
}

function withoutSecrets(line: string): string {
  return SECRET_TEXTS.reduce(
    (text, pattern) => text.replace(pattern, CENSOR),
    line
  )
}

import pino, { type DestinationStream, type Logger } from 'pino'

/** Paths whose values are never written, at any of the first levels. */
const SECRETS = [
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
].flatMap((name) => [name, `*.${name}`, `*.*.${name}`])

/** A structured logger: one JSON object a line, without secrets. */
export function createLogger(
  level: string,
  destination?: DestinationStream
): Logger {
  const options = {
    level,
    base: null,
    redact: { paths: SECRETS, censor: '[secret]' },
  }
  return destination ? pino(options, destination) : pino(options)
}

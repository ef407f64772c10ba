import { fork, type ChildProcess } from 'node:child_process'
import { extname } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { SafeFetchOptions } from '../atproto/index.ts'
import { ForbiddenAddressError, HostError } from '../backup/index.ts'
import type { StoresOptions } from '../stores/index.ts'
import { responseOf, type RefreshAnswer } from './answer.ts'

/** The grant that a request refreshes. */
export interface CarriedGrant {
  space: string
  account: string
  seq: number
  /** Age recipient of its agent. */
  recipient: string
}

/** What a host has answered, and a courier still holds. */
export interface CarriedAnswer {
  response: Response
  /** Tells the courier that it need not hold it any longer. */
  release: () => void
}

/**
 * Carries requests to refresh, in a process of its own that outlives the one
 * which has sent them. A host trades a token once and answers once: whoever is
 * killed in between would take the only copy of the new session along. What a
 * courier still holds when its sender is gone, it keeps in the store, sealed for
 * the agent, where the next refresher finds it.
 *
 * The process begins with the first request, and ends when there was none for a
 * while. It does not keep its sender from ending.
 */
export interface Courier extends Disposable {
  /**
   * @throws {@link CourierUnavailableError} when the request was not sent;
   *   {@link HostError} {@link ForbiddenAddressError}
   */
  send(request: Request, grant: CarriedGrant): Promise<CarriedAnswer>
}

/** There is no process for a courier; nothing was sent. */
export class CourierUnavailableError extends Error {
  override readonly name = 'CourierUnavailableError'
}

export interface CourierOptions {
  /** Where answers are kept when nobody is left to take them. */
  stores: StoresOptions
  /** How hosts are asked. */
  fetch: SafeFetchOptions
  /** Of its log, which goes to where that of its sender goes. */
  logLevel: string
  /** After so many milliseconds without a request the process ends. */
  idle?: number
}

/** What a courier is told. */
export type CourierOrder =
  | { kind: 'begin'; options: CourierOptions }
  | {
      kind: 'send'
      number: number
      grant: CarriedGrant
      request: {
        url: string
        method: string
        headers: [string, string][]
        body: string
      }
    }
  | { kind: 'release'; number: number }

/** What a courier tells. */
export type CourierReport =
  | { kind: 'ready' }
  | { kind: 'answer'; number: number; answer: RefreshAnswer }
  | { kind: 'failure'; number: number; name: string; message: string }

/** Milliseconds without a request, after which a courier is not needed. */
const IDLE = 60_000

/** Beside this file, and of its kind: TypeScript, or what was built of it. */
const SCRIPT = fileURLToPath(
  new URL(`courier-process${extname(import.meta.url)}`, import.meta.url)
)

export function createCourier(options: CourierOptions): Courier {
  let present: Carriage | undefined
  return {
    async send(request, grant) {
      // One that has nothing to do may have ended.
      if (!present?.isThere()) present = new Carriage(options)
      return present.send(request, grant)
    },
    [Symbol.dispose]() {
      present?.leave()
      present = undefined
    },
  }
}

/** A process, and what it was given to carry. */
class Carriage {
  readonly #child: ChildProcess
  /** Rejects when it can carry nothing. */
  readonly #ready = Promise.withResolvers<void>()
  readonly #idle: number
  /** Who waits for an answer. */
  readonly #waiting = new Map<number, PromiseWithResolvers<Response>>()
  /** Numbers of requests whose answers it holds. */
  readonly #held = new Set<number>()
  #next = 0
  #timer: NodeJS.Timeout | undefined
  /** Whether it is to go when nobody needs it any more. */
  #isLeaving = false

  constructor(options: CourierOptions) {
    this.#idle = options.idle ?? IDLE
    const isSilent = options.logLevel === 'silent'
    this.#child = fork(SCRIPT, {
      // What ends the group of its sender does not end it.
      detached: true,
      execArgv: [],
      serialization: 'advanced',
      stdio: [
        'ignore',
        isSilent ? 'ignore' : 'inherit',
        isSilent ? 'ignore' : 'inherit',
        'ipc',
      ],
    })
    // Whoever sends first is told.
    this.#ready.promise.catch(() => {})
    this.#child.on('message', (report) => this.#take(report as CourierReport))
    this.#child.on('exit', (code, signal) =>
      this.#fail(new Error(`it ended with ${signal ?? code}`))
    )
    this.#child.on('disconnect', () => this.#fail(new Error('it has gone')))
    this.#child.on('error', (error) => this.#fail(error))
    this.#child.unref()
    this.#child.channel?.unref()
    this.#tell({ kind: 'begin', options }).catch((error: unknown) =>
      this.#fail(error)
    )
  }

  isThere(): boolean {
    return this.#child.connected && !this.#isLeaving
  }

  async send(request: Request, grant: CarriedGrant): Promise<CarriedAnswer> {
    clearTimeout(this.#timer)
    const number = this.#next++
    const answer = Promise.withResolvers<Response>()
    // Who began it may not have come to wait for it yet.
    answer.promise.catch(() => {})
    this.#waiting.set(number, answer)
    this.#held.add(number)
    this.#child.channel?.ref()
    try {
      const { url, method, headers } = request
      const body = await request.text()
      await this.#ready.promise
      await this.#tell({
        kind: 'send',
        number,
        grant,
        request: { url, method, headers: [...headers], body },
      })
      const response = await answer.promise
      return { response, release: () => this.#release(number) }
    } catch (error) {
      this.#release(number)
      throw error
    } finally {
      this.#waiting.delete(number)
      if (this.#waiting.size === 0) this.#child.channel?.unref()
    }
  }

  /** Ends as soon as nobody here may take what it holds. */
  leave(): void {
    this.#isLeaving = true
    clearTimeout(this.#timer)
    // What comes from now on is kept by the courier when its sender has gone.
    this.#child.channel?.unref()
    if (this.#held.size === 0 && this.#child.connected) {
      this.#child.disconnect()
    }
  }

  #tell(order: CourierOrder): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#child.send(order, (error) =>
        error ? reject(unavailable(error)) : resolve()
      )
    })
  }

  #take(report: CourierReport): void {
    if (report.kind === 'ready') {
      this.#ready.resolve()
      return
    }
    const waiting = this.#waiting.get(report.number)
    if (report.kind === 'answer') {
      waiting?.resolve(responseOf(report.answer))
      return
    }
    const { name, message } = report
    waiting?.reject(
      name === 'ForbiddenAddressError'
        ? new ForbiddenAddressError(message)
        : new HostError(message)
    )
  }

  #fail(cause: unknown): void {
    this.#ready.reject(unavailable(cause))
    for (const { reject } of this.#waiting.values()) {
      reject(
        new HostError(
          'the process that carried a refresh has ended before there was an answer. Try again later.',
          { cause }
        )
      )
    }
  }

  #release(number: number): void {
    if (!this.#held.delete(number)) return
    if (this.#child.connected) {
      // One that has ended meanwhile holds nothing.
      this.#tell({ kind: 'release', number }).catch(() => {})
    }
    if (this.#held.size > 0) return
    if (this.#isLeaving) return this.leave()
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.leave(), this.#idle).unref()
  }
}

function unavailable(cause: unknown): CourierUnavailableError {
  return new CourierUnavailableError(
    'the process that carries refreshes cannot be started or told',
    { cause }
  )
}

import assert from 'node:assert/strict'
import fc from 'fast-check'
import {
  circuitAt,
  CIRCUIT_POLICY,
  type CircuitPolicy,
} from '../../src/service/circuit.ts'
import type { HostTrouble } from '../../src/stores/index.ts'

const MINUTE = 60_000
const POLICY: CircuitPolicy = { ...CIRCUIT_POLICY, failures: 3 }

/** A host and the time that goes by at it. */
class Host {
  now = 1_742_140_800_000
  trouble: HostTrouble | undefined
  readonly #random: () => number

  constructor(random = () => 0.999) {
    this.#random = random
  }

  get circuit() {
    return circuitAt(this.now, POLICY, this.#random)
  }

  get admission() {
    return this.circuit.admit(this.trouble)
  }

  /** Milliseconds until somebody may ask it. */
  get wait() {
    return this.admission.open ? 0 : this.admission.until - this.now
  }

  fail({ isProbe = false } = {}) {
    this.trouble = this.circuit.failed(this.trouble, isProbe)
  }

  answer({ isProbe = false } = {}) {
    this.trouble = this.circuit.answered(this.trouble, isProbe)
  }

  limit(retryAfter?: number, { isProbe = false } = {}) {
    this.trouble = this.circuit.limited(this.trouble, isProbe, retryAfter)
  }

  /** Waits until somebody may ask, and is the one. */
  probe() {
    this.now += this.wait
    const { admission } = this
    assert.ok(admission.open && admission.probe)
    this.trouble = admission.probe
  }

  close() {
    for (let i = 0; i < POLICY.failures; i++) this.fail()
    assert.equal(this.admission.open, false)
  }
}

describe('circuit of a host', () => {
  it('is open to all while nothing is known', () => {
    assert.deepEqual(new Host().admission, { open: true })
  })

  it('closes after failures in a row, and only in a row', () => {
    const host = new Host()
    host.fail()
    host.fail()
    assert.deepEqual(host.admission, { open: true })
    host.answer()
    assert.equal(host.trouble, undefined)
    host.fail()
    host.fail()
    assert.equal(host.wait, 0)
    host.fail()
    assert.ok(host.wait > 0 && host.wait <= POLICY.closure)
  })

  it('lets one through after the wait, who decides', () => {
    const host = new Host()
    host.close()
    host.now += host.wait - 1
    assert.equal(host.admission.open, false)
    host.now += 1
    host.probe()
    // The others wait for what comes of it.
    assert.deepEqual(host.admission, {
      open: false,
      until: host.now + POLICY.probe,
    })
    host.answer({ isProbe: true })
    assert.equal(host.trouble, undefined)
    assert.deepEqual(host.admission, { open: true })
  })

  it('waits longer each time the probe fails, up to a limit', () => {
    const host = new Host(() => 1)
    host.close()
    const waits = []
    for (let i = 0; i < 9; i++) {
      waits.push(host.wait / MINUTE)
      host.probe()
      host.fail({ isProbe: true })
    }
    assert.deepEqual(waits, [0.5, 1, 2, 4, 8, 16, 30, 30, 30])
    host.probe()
    host.answer({ isProbe: true })
    host.close()
    assert.equal(host.wait / MINUTE, 0.5)
  })

  it('does not let all hosts come back at the same time', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        fc.nat(20),
        (random, probes) => {
          const host = new Host(() => random)
          host.close()
          for (let i = 0; i < probes; i++) {
            host.probe()
            host.fail({ isProbe: true })
          }
          const longest = Math.min(
            POLICY.closure * 2 ** probes,
            POLICY.maxClosure
          )
          assert.equal(host.wait, Math.round((longest * (1 + random)) / 2))
        }
      )
    )
  })

  it('does not heed what was under way when it closed', () => {
    const host = new Host()
    host.close()
    const { trouble } = host
    for (let i = 0; i < 20; i++) host.fail()
    assert.deepEqual(host.trouble, trouble)
    host.answer()
    assert.deepEqual(host.trouble, trouble)
    host.probe()
    host.answer()
    assert.equal(host.admission.open, false)
  })

  it('tries again when nobody hears of the probe any more', () => {
    const host = new Host()
    host.close()
    host.probe()
    host.now += POLICY.probe
    assert.equal(host.wait, 0)
    host.probe()
    host.trouble = host.circuit.left(host.trouble, true)
    assert.equal(host.wait, 0)
    host.probe()
    host.trouble = host.circuit.left(host.trouble, false)
    assert.equal(host.wait, POLICY.probe)
  })

  describe('of a host that wants fewer requests', () => {
    it('closes at once, for as long as the host says', () => {
      const host = new Host()
      host.limit(90)
      assert.equal(host.wait, 90_000)
      // Those that were under way hear the same.
      host.now += 1_000
      host.limit(89)
      host.limit(3)
      assert.equal(host.wait, 89_000)
      assert.equal(host.trouble?.closures, 1)
      host.probe()
      host.answer({ isProbe: true })
      assert.equal(host.trouble, undefined)
    })

    it('closes for an hour at most', () => {
      const host = new Host()
      host.limit(10 * 365 * 86_400)
      assert.equal(host.wait, 60 * MINUTE)
      host.limit(Infinity)
      assert.equal(host.wait, 60 * MINUTE)
    })

    it('closes for a second at least', () => {
      const host = new Host()
      host.limit(0)
      assert.equal(host.wait, 1_000)
      host.limit(-5)
      assert.equal(host.wait, 1_000)
    })

    it('closes longer and longer if the host does not say for how long', () => {
      const host = new Host()
      const waits = []
      host.limit()
      for (let i = 0; i < 8; i++) {
        // Nobody makes it longer who was under way.
        host.limit()
        waits.push(host.wait / MINUTE)
        host.probe()
        host.limit(undefined, { isProbe: true })
      }
      assert.deepEqual(waits, [1, 2, 4, 8, 16, 32, 60, 60])
    })

    it('closes for longer when one that failed says so', () => {
      const host = new Host()
      host.close()
      host.limit(600)
      assert.equal(host.wait, 600_000)
      assert.equal(host.trouble?.kind, 'limited')
    })
  })

  it('never stays closed for longer than it may, whatever happens', () => {
    const event = fc.oneof(
      fc.record({ kind: fc.constant('fail'), isProbe: fc.boolean() }),
      fc.record({ kind: fc.constant('answer'), isProbe: fc.boolean() }),
      fc.record({ kind: fc.constant('probe') }),
      fc.record({ kind: fc.constant('time'), ms: fc.nat(2 * 60 * MINUTE) }),
      fc.record({
        kind: fc.constant('limit'),
        retryAfter: fc.option(fc.integer(), { nil: undefined }),
        isProbe: fc.boolean(),
      })
    )
    fc.assert(
      fc.property(
        fc.array(event, { maxLength: 50 }),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        (events, random) => {
          const host = new Host(() => random)
          for (const event of events) {
            if ('ms' in event) host.now += event.ms
            else if ('retryAfter' in event) host.limit(event.retryAfter, event)
            else if (!('isProbe' in event)) {
              const { admission } = host
              if (admission.open) host.trouble = admission.probe ?? host.trouble
            } else if (event.kind === 'fail') host.fail(event)
            else host.answer(event)
            assert.ok(host.wait <= POLICY.maxPause)
          }
        }
      )
    )
  })
})

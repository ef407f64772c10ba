import type { Service } from '@storacha/upload-api/types'

/**
 * What goes wrong on purpose, from the moment it is set. As at the real
 * service, an invocation that was answered with an error gets the same answer
 * each time it is repeated: a client that wants a new one adds a nonce.
 */
export interface Faults {
  /** Nothing can be added: `ServiceUnavailable`. */
  uploadsClosed: boolean
  /** No space has storage left: `InsufficientStorage`. */
  overQuota: boolean
  /**
   * Number of blobs that can still be added, and counts down. At 0 adding a
   * blob answers `ServiceUnavailable`.
   */
  failAfterBlobAdds: number | undefined
  /** Every HTTP request is answered with status 503. */
  down: boolean
  /** The gateway sends as many bytes as it should, but wrong ones. */
  lyingGateway: boolean
}

export function createFaults(): Faults {
  return {
    uploadsClosed: false,
    overQuota: false,
    failAfterBlobAdds: undefined,
    down: false,
    lyingGateway: false,
  }
}

interface Refusal {
  error: { name: string; message: string }
}

/** Makes the capabilities that add to a space fail as the faults say. */
export function injectFaults(service: Service, faults: Faults): void {
  const { space, upload } = service
  const addBlob = () => {
    if (faults.uploadsClosed) return disabled('space/blob/add')
    if (faults.overQuota) return insufficient
    if (faults.failAfterBlobAdds === undefined) return undefined
    if (faults.failAfterBlobAdds === 0) return disabled('space/blob/add')
    faults.failAfterBlobAdds--
    return undefined
  }
  const addTo = (can: string) => () =>
    faults.uploadsClosed ? disabled(can) : undefined
  space.blob.add = refuse(addBlob, space.blob.add)
  space.index.add = refuse(addTo('space/index/add'), space.index.add)
  upload.add = refuse(addTo('upload/add'), upload.add)
}

/** Asks for a refusal before each call. */
function refuse<Input extends unknown[], Output>(
  ask: () => Refusal | undefined,
  method: (...input: Input) => Output
): (...input: Input) => Output {
  return (...input) => (ask() as Output | undefined) ?? method(...input)
}

const insufficient: Refusal = {
  error: {
    name: 'InsufficientStorage',
    message: 'The space has no storage provider with enough space',
  },
}

function disabled(can: string): Refusal {
  return {
    error: {
      name: 'ServiceUnavailable',
      message: `The "${can}" capability is currently disabled.`,
    },
  }
}

import { chromium, type Browser, type Page } from 'playwright-core'

/** Starts the browser that `scripts/with-chromium.sh` has found. */
export async function startChromium(): Promise<Browser & AsyncDisposable> {
  const executablePath = process.env['CHROMIUM_PATH']
  if (executablePath === undefined) {
    throw new Error(
      'there is no CHROMIUM_PATH; run the tests by `npm run test:browser`'
    )
  }
  return chromium.launch({
    executablePath,
    headless: true,
    args: [
      // Containers have no user namespaces; all that is loaded is ours.
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  })
}

/**
 * Signs in and consents at the pages of a PDS.
 *
 * @param page - at the address where the client sends the user
 */
export async function signIn(
  page: Page,
  {
    username,
    password,
    deny = false,
  }: { username: string; password: string; deny?: boolean }
): Promise<void> {
  const name = page.locator('input[name="username"]')
  await page.locator('input[name="password"]').waitFor()
  if ((await name.count()) > 0 && (await name.isEditable())) {
    await name.fill(username)
  }
  await page.locator('input[name="password"]').fill(password)
  await page.getByRole('button', { name: 'Sign in' }).click()
  const authorize = page.getByRole('button', { name: 'Authorize' })
  await authorize.waitFor()
  await (
    deny ? page.getByRole('button', { name: /deny|cancel/i }) : authorize
  ).click()
}

import js from '@eslint/js'
import tseslint from 'typescript-eslint'

/**
 * The arrows between folders of `src/`: each folder may import itself and the
 * folders named here, and nothing else of `src/`.
 */
const ARROWS = {
  // Types alone: how far a run is, is told in one way.
  capabilities: ['backup'],
  space: [],
  backup: ['space'],
  atproto: ['backup'],
  storacha: ['backup', 'space'],
  stores: [],
  node: ['backup'],
  client: ['capabilities', 'space', 'backup'],
  scheduler: ['capabilities', 'client', 'stores', 'backup'],
  service: [
    'capabilities',
    'space',
    'backup',
    'atproto',
    'storacha',
    'stores',
    'node',
    'client',
    'scheduler',
  ],
  cli: [
    'capabilities',
    'space',
    'backup',
    'atproto',
    'storacha',
    'stores',
    'node',
    'client',
    'service',
  ],
}

/** Folders that also run in a browser: web standards only. */
const BROWSER = ['space', 'backup', 'capabilities', 'client']

const folders = Object.keys(ARROWS)

const arrows = folders.map((folder) => {
  const allowed = [folder, ...ARROWS[folder]]
  const forbidden = folders.filter((other) => !allowed.includes(other))
  return {
    files: [`src/${folder}/**/*.ts`],
    rules: {
      'no-restricted-imports': [
        'error',
        {
          patterns: [
            ...(forbidden.length
              ? [
                  {
                    regex: `^(\\.\\./)+(${forbidden.join('|')})/`,
                    message: `src/${folder} may import only: ${allowed.join(', ')} (see the arrows in eslint.config.js)`,
                  },
                ]
              : []),
            ...(BROWSER.includes(folder)
              ? [
                  {
                    regex: '^node:|^(fs|path|crypto|stream|buffer|http)$',
                    message: `src/${folder} runs in a browser: web standards only`,
                  },
                ]
              : []),
          ],
        },
      ],
      ...(BROWSER.includes(folder)
        ? { 'no-restricted-globals': ['error', 'Buffer', 'process'] }
        : {}),
    },
  }
})

export default tseslint.config(
  { ignores: ['dist/', 'coverage/', 'node_modules/'] },
  js.configs.recommended,
  {
    files: ['**/*.ts'],
    extends: [...tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true } },
    rules: {
      '@typescript-eslint/no-unused-vars': [
        'error',
        { argsIgnorePattern: '^_', varsIgnorePattern: '^_' },
      ],
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/only-throw-error': 'error',
      // CIDs and DIDs know how they are written.
      '@typescript-eslint/restrict-template-expressions': 'off',
      '@typescript-eslint/no-base-to-string': 'off',
      eqeqeq: ['error', 'always', { null: 'ignore' }],
    },
  },
  {
    files: ['test/**/*.ts', 'bench/**/*.ts'],
    rules: {
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-member-access': 'off',
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/no-unsafe-call': 'off',
      '@typescript-eslint/no-unsafe-return': 'off',
      '@typescript-eslint/no-explicit-any': 'off',
    },
  },
  {
    files: ['**/*.js'],
    languageOptions: {
      globals: { process: 'readonly', console: 'readonly', URL: 'readonly' },
    },
  },
  ...arrows
)
